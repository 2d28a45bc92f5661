"""The pilot: what a company keeps, saves and risks, measured on its own data before it retrains on a schedule."""
