"""`python -m stripseg COMMAND ...`: the same as the program `stripseg`."""

from stripseg.tool.main import main

if __name__ == "__main__":
    main()
