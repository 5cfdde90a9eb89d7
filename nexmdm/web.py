"""The program `python -m nexmdm.web`, which runs one web worker (nexmdm/http/server.py)."""

from nexmdm.http import server

if __name__ == "__main__":
    server.main()
