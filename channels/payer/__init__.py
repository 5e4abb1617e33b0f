"""Pays for calls: the wallet, its budget and channels, and the plugins for httpx and tritonclient.

May import metering, receipts, protocol and errors; needs no SQL, chain client, torch or Ray.
"""

from channels.payer.account import Account, AccountRefused
from channels.payer.budget import Budget, BudgetExceeded
from channels.payer.channel import DishonestServer
from channels.payer.flow import receipt
from channels.payer.httpx_auth import ChannelAuth
from channels.payer.repeat import AsyncRepeatTransport, RepeatTransport
from channels.payer.tritonclient import TritonPayment
from channels.payer.wallet import Wallet

__all__ = [
    "Account",
    "AccountRefused",
    "AsyncRepeatTransport",
    "Budget",
    "BudgetExceeded",
    "ChannelAuth",
    "DishonestServer",
    "RepeatTransport",
    "TritonPayment",
    "Wallet",
    "receipt",
]
