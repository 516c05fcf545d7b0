"""A web page to work in: `bash studio.sh`, or `python sat/studio.py [--port 7860]`; then http://127.0.0.1:7860.

Makes videos with the models whose weights this machine has, in the folders of the other launchers, and shows, ranks and measures them.
Only this machine can open the page, unless --listen says otherwise, and nothing is fetched from the internet.
"""

from concat_id.startup import prepare_process, run  # isort: split

import os
import shutil
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path

from concat_id.config.parser import Namespace, Parser
from concat_id.errors import UserError

LOCAL = "127.0.0.1", "localhost"  # addresses that need no password
PREFIX = "concat-id-studio-"  # of the folder of uploads, in that for temporary files
SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "DO_NOT_TRACK": "1"}  # no look for updates either


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="port of the page (default: %(default)s)")
    parser.add_argument("--listen", metavar="ADDRESS", default=LOCAL[0], help="address to listen on, such as 0.0.0.0 for all networks")
    parser.add_argument("--password", metavar="TEXT", default=os.environ.get("CONCAT_ID_PASSWORD"),
                        help="what --listen needs; CONCAT_ID_PASSWORD hides it from others here; the user is studio, nothing is encrypted")
    parser.add_argument("--output", metavar="FOLDER", help="folder of the results (default: those of the models' YAML files)")
    arguments = parser.parse_args()
    if not 1 <= arguments.port <= 65535:
        raise UserError(f"command line: --port: found {arguments.port}, expected 1 to 65535")
    if arguments.listen not in LOCAL and not arguments.password:
        raise UserError(f"command line: --listen {arguments.listen}: found no --password, expected one, as others can open the page then")
    return arguments


def main() -> None:
    """Find the models, lay the page out, and serve it until Ctrl-C."""
    prepare_process()
    arguments = read_arguments()
    sweep()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as uploads:
        os.environ.update(SETTINGS, GRADIO_TEMP_DIR=uploads)
        serve(arguments)


def sweep() -> None:
    """Remove the uploads of servers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        process = folder.name.removeprefix(PREFIX).partition("-")[0]
        if process.isdigit() and not Path("/proc", process).exists():
            shutil.rmtree(folder, ignore_errors=True)


def serve(arguments: Namespace) -> None:
    """Serve the page, which gradio itself asks, past any proxy; uploads and what it shows are in a folder that goes with it."""
    if find_spec("gradio") is None:
        raise UserError("gradio: not installed, expected it for the page; run `bash studio.sh`, which installs it")
    from concat_id.studio.choices import find_models
    from concat_id.studio.guard import OWN_NAMES, bracketed, guarded
    from concat_id.studio.page import CSS, NAME_PARTS, Studio, build_page, theme
    address, studio = bracketed(arguments.listen or LOCAL[0]), Studio(find_models(arguments.output))
    os.environ["no_proxy"] = ",".join([os.getenv("no_proxy") or os.getenv("NO_PROXY", ""), *OWN_NAMES, address.strip("[]")])
    page = build_page(studio).queue(max_size=32, api_open=False)
    try:
        page.launch(
            server_name=address, server_port=arguments.port, share=False, quiet=True, prevent_thread_lock=True, pwa=False, ssr_mode=False,
            auth=("studio", arguments.password) if arguments.password else None, app_kwargs=guarded(bool(arguments.password)), css=CSS,
            auth_message="The user is studio", max_file_size="64mb", footer_links=[], enable_monitoring=False, js=NAME_PARTS, theme=theme(),
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"port {arguments.port}: is in use by another program, or not to be had; choose another with --port") from error
    print(f"Concat-ID Studio: http://{address}:{arguments.port}   (Ctrl-C ends it)", flush=True)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # as under nohup
            signal.signal(ending, signal.default_int_handler)  # an end like Ctrl-C's
    try:
        signal.pause()
    except KeyboardInterrupt:
        print("ended", flush=True)
    finally:
        studio.worker.close()
        page.close(verbose=False)


if __name__ == "__main__":
    run(main)
