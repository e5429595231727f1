"""`python -m laocoon` is `laocoon`."""

from laocoon.cli.main import app

if __name__ == "__main__":
    app()
