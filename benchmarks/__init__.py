"""What Headwater costs, and how far that is from the floor. Each module is a command."""
