"""The code behind `run.py`: environment, host, headless server, and the commands built on them."""
