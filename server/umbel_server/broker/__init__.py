"""The embedded MQTT broker, and configurations of other brokers in which a device reaches only its own topics.

A configured broker knows a client by its certificate. The certificate of a device names `<population>/<device>`, which is
also the middle of its topics; the certificate of the server has a name that no device can have.
"""
