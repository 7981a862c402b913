"""A page in the browser for one pipeline: generate networks, look at them, let them vote; also as a Space."""
