"""Chaos runs. A run causes a fault under load. Afterwards, the program compares four records of what happened in the
run.

These records are called ledgers: the answers to the clients, the database, the journal of the fake FCM, and the event
feed.
"""
