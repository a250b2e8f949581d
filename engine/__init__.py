"""The front end: from the socket to the answer. ``lua`` decides, ``persister`` remembers."""
