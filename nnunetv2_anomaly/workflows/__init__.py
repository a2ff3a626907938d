"""The demo and the published chain as resumable runs of stock commands."""
