"""Modules that all other packages may import, such as database access, types of the API and errors.

These modules import nothing from other packages of NexMDM.
"""
