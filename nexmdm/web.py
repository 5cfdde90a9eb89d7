"""One web worker: `python -m nexmdm.web`. See nexmdm/http/server.py."""

from nexmdm.http import server

if __name__ == "__main__":
    server.main()
