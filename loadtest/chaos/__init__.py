"""Chaos runs. A run causes a fault under load. Afterwards, the run compares four records of the events in it.

These records are called ledgers: the answers to the clients, the database, the journal of the fake FCM, and the event
feed.
"""
