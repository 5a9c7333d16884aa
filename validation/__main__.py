"""`python -m validation` is the command `searchphase`."""

from validation.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
