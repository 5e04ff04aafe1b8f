"""The journal: where accepted events are kept until they are handled, so that a new process goes on."""
