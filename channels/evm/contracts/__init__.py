"""The settlement contracts in Vyper, and what the compiler makes of them."""
