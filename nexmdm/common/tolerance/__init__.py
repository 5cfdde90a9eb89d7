"""Tolerance for bodies of phones. Values that do not fit are repaired or dropped, if their fields only inform the
server.
"""
