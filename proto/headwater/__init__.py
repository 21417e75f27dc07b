"""What the coordinator and the clients share: plan format, tensor layout, update codecs, errors."""
