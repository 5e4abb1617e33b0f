"""Pays for calls: the wallet, its budget and channels, and the plugins for httpx and tritonclient.

May import metering, receipts, protocol and errors; needs no SQL, chain client, torch or Ray.
"""

from channels.payer.account import Account
from channels.payer.budget import Budget, BudgetExceeded
from channels.payer.httpx_auth import ChannelAuth, TritonPayment, Wallet, receipt

__all__ = ["Account", "Budget", "BudgetExceeded", "ChannelAuth", "TritonPayment", "Wallet", "receipt"]
