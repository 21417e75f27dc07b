"""An S3-compatible server: moto's, in a process of its own. Objects live in its memory.

It goes away at SIGUSR1, so that connections are refused, and comes back at SIGUSR2 on the same
port with what it had.
"""

import signal
import threading

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


def main() -> None:
    changes = {signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, changes)
    application, port = DomainDispatcherApplication(create_backend_app), 0
    while True:
        server = make_server("127.0.0.1", port, application, threaded=True)
        port = server.port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"serving at http://127.0.0.1:{port}", flush=True)
        signal.sigwait({signal.SIGUSR1})
        server.shutdown()
        server.server_close()
        print("away", flush=True)
        signal.sigwait({signal.SIGUSR2})


if __name__ == "__main__":
    main()
