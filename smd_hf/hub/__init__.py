"""The Hub: what is pushed, how requests are made, and what went wrong with them."""
