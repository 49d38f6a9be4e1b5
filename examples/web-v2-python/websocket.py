"""The server's half of a WebSocket (RFC 6455), as far as exec, attach and port-forward need it."""

import base64
import hashlib
import struct
import threading

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
LARGEST = 16 << 20


class WebSocket:
    """A connection whose protocol has been changed. Any thread may send; one receives."""

    def __init__(self, handler, protocol):
        key = handler.headers.get("Sec-WebSocket-Key", "")
        offered = [p.strip() for p in handler.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        if handler.headers.get("Upgrade", "").lower() != "websocket" or not key or protocol not in offered:
            raise ValueError(f"this path is a WebSocket of protocol {protocol}")
        accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest())
        handler.send_response(101)
        handler.send_header("Upgrade", "websocket")
        handler.send_header("Connection", "Upgrade")
        handler.send_header("Sec-WebSocket-Accept", accept.decode())
        handler.send_header("Sec-WebSocket-Protocol", protocol)
        handler.end_headers()
        handler.wfile.flush()
        handler.close_connection = True
        self.read, self.write, self.lock = handler.rfile, handler.wfile, threading.Lock()

    def _send(self, opcode, data):
        if len(data) < 126:
            head = struct.pack("!BB", 0x80 | opcode, len(data))
        elif len(data) < 1 << 16:
            head = struct.pack("!BBH", 0x80 | opcode, 126, len(data))
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 127, len(data))
        with self.lock:
            self.write.write(head + data)
            self.write.flush()

    def send(self, data):
        """Sends a message. What the other side no longer wants is dropped."""
        try:
            self._send(BINARY, bytes(data))
            return True
        except OSError:
            return False

    def close(self):
        try:
            self._send(CLOSE, struct.pack("!H", 1000))
        except OSError:
            pass

    def _exactly(self, count):
        data = self.read.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def receive(self):
        """The next message; None at the end."""
        message = b""
        try:
            while True:
                first, second = self._exactly(2)
                size = second & 0x7F
                if size == 126:
                    (size,) = struct.unpack("!H", self._exactly(2))
                elif size == 127:
                    (size,) = struct.unpack("!Q", self._exactly(8))
                if size + len(message) > LARGEST or not second & 0x80:
                    return None
                mask = self._exactly(4)
                data = self._exactly(size)
                data = (int.from_bytes(data, "big") ^ int.from_bytes((mask * (size // 4 + 1))[:size], "big")).to_bytes(size, "big")
                opcode = first & 0x0F
                if opcode == PING:
                    self._send(PONG, data)
                elif opcode == CLOSE:
                    return None
                elif opcode != PONG:
                    message += data
                    if first & 0x80:
                        return message
        except (EOFError, OSError):
            return None
