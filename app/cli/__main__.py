"""`python -m app.cli`: the command by another name, for processes that start one another."""

from app.cli import main

main()
