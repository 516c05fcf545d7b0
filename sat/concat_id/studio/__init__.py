"""The web page: what can be asked for, the process that makes it, and what has been made."""
