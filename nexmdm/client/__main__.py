"""python -m nexmdm.client: the program `nexmdm`."""

from nexmdm.client.program import main

if __name__ == "__main__":
    main()
