#!/usr/bin/env bash
# paho-mqtt publishes more and larger messages than the MQTT 5 broker allows, and reports success.
#
# Version:   paho-mqtt 2.2.0, protocol MQTT 5
# Behaviour: the broker's CONNACK announces Receive Maximum 2 and Maximum Packet Size 64. The client hands both to `on_connect`,
#            and then sends five QoS 1 messages of 1,000 bytes at once. `publish` returns MQTT_ERR_SUCCESS for each.
# Expected:  MQTT 5 forbids a client to send a larger packet (3.2.2.3.6), and to have more unacknowledged ones under way (4.9).
# Output:    announced [ReceiveMaximum : 2, MaximumPacketSize : 64]
#            publish   ['MQTT_ERR_SUCCESS', 'MQTT_ERR_SUCCESS', 'MQTT_ERR_SUCCESS', 'MQTT_ERR_SUCCESS', 'MQTT_ERR_SUCCESS']
#            arrived   [1012, 1012, 1012, 1012, 1012] bytes, none of them acknowledged
# Way out:   keep the properties of `on_connect`, and hold back in the application.
# The broker below speaks only as much MQTT as this needs, on loopback.
# Exit code: 0 while the behaviour is there, 1 when it has changed, 2 when the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check paho-mqtt==2.2.0 || exit 2
"$folder/venv/bin/python" - <<'EOF'
import socket
import sys
import threading
import time

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

AT_ONCE, LARGEST = 2, 64
CONNACK, PUBLISH = 0x20, 3
arrived = []


def read_packet(stream):
    """The type and the length of the next packet."""
    first = stream.read(1)
    if not first:
        return None
    length = shift = 0
    while True:
        byte = stream.read(1)[0]
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    stream.read(length)
    return first[0] >> 4, length


def serve(listener):
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        read_packet(stream)
        limits = b"\x21" + AT_ONCE.to_bytes(2, "big") + b"\x27" + LARGEST.to_bytes(4, "big")
        answer = bytes([0, 0, len(limits)]) + limits
        connection.sendall(bytes([CONNACK, len(answer)]) + answer)
        while packet := read_packet(stream):
            if packet[0] == PUBLISH:
                arrived.append(packet[1])


listener = socket.create_server(("127.0.0.1", 0))
broker = threading.Thread(target=serve, args=(listener,), daemon=True)
broker.start()
connected = threading.Event()


def on_connect(client, userdata, flags, reason, properties):
    print("announced", properties)
    connected.set()


client = Client(CallbackAPIVersion.VERSION2, "device-1", protocol=MQTTProtocolVersion.MQTTv5)
client.on_connect = on_connect
client.connect("127.0.0.1", listener.getsockname()[1])
client.loop_start()
connected.wait(10)
said = [client.publish("updates", bytes(1000), qos=1).rc.name for _ in range(5)]
deadline = time.monotonic() + 5
while len(arrived) < 5 and time.monotonic() < deadline:
    time.sleep(0.05)
client.disconnect()
client.loop_stop()
broker.join(5)
print("publish  ", said)
print("arrived  ", arrived, "bytes, none of them acknowledged")
sys.exit(not (set(said) == {"MQTT_ERR_SUCCESS"} and len(arrived) > AT_ONCE and max(arrived) > LARGEST))
EOF
