"""The device's side: attends a coordinator, trains on local data, and sends updates."""
