"""One module a question: `python -m experiments.<name>`."""
