# A server that reads requests with h11, and answers each with what it read.
import json, socket, threading, h11

def serve(sock):
    conn = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    asked, body = None, b""
    while True:
        try:
            event = conn.next_event()
        except h11.RemoteProtocolError as error:
            if conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                text = str(error).encode()
                head = h11.Response(status_code=error.error_status_hint,
                                    headers=[("content-length", str(len(text))), ("connection", "close")])
                sock.sendall(conn.send(head) + conn.send(h11.Data(data=text)) + conn.send(h11.EndOfMessage()))
            return
        if event is h11.NEED_DATA:
            data = sock.recv(65536)
            if not data:
                return
            conn.receive_data(data)
        elif isinstance(event, h11.Request):
            asked, body = event, b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            said = json.dumps({"method": asked.method.decode("latin1"), "target": asked.target.decode("latin1"),
                               "body": body.hex()}).encode()
            head = h11.Response(status_code=200, headers=[("content-length", "0"), ("x-said", said)])
            sock.sendall(conn.send(head) + (conn.send(h11.EndOfMessage()) or b""))
            if conn.our_state is h11.MUST_CLOSE:
                return
            conn.start_next_cycle()
        else:
            return  # the client has gone

def attend(sock):
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        serve(sock)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
    except OSError:
        pass
    sock.close()

listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(64)
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=attend, args=listener.accept()[:1], daemon=True).start()
