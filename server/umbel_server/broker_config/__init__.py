"""Ready configurations of brokers in which a device can reach its own topics and no others.

A client is who its certificate says: the name in it is `<population>/<device>`, which is also the middle of its topics, and
the server's is one that no device can have.
"""
