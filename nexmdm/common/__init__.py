"""The shared base of all modules: database access, wire types, problems and other tools; it imports nothing of ours."""
