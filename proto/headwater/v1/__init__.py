"""The wire contract: the messages and services that the .proto files beside this one define."""
