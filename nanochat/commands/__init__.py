"""The commands of the command line, and the plain-text chat."""
