"""The kernel's packet filter as data: rulesets of nftables, what they do to a connection, and how nft prints them.

Nothing here opens anything: `nft_dump` reads the ruleset, `host_view` the rest of what `evaluate` is told.
"""
