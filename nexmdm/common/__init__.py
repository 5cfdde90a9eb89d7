"""The ground floor: database access, wire types, problems and other tools; it imports nothing of ours."""
