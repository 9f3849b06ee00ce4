"""The Hub: pushes runs, repeats requests and explains their errors."""
