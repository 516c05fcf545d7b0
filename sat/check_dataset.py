"""Check training lists before training: `python sat/check_dataset.py list.json [--base MODEL.yaml TRAINING.yaml]`.

Reads every clip and image as training would, names what is wrong with which entry, and sums up what there is.
The exit code is 1 if anything must be mended, 0 if there are at most notes.
"""

from concat_id.config.parser import Namespace, Parser
from concat_id.errors import UserError, one_line, run
from concat_id.startup import prepare_process


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("lists", nargs="*", metavar="LIST", help="JSON lists, or folders of clips (default: train_data and valid_data)")
    parser.add_argument("--base", nargs="+", default=[], metavar="FILE", help="YAML files of the run, for the clips' size, rate and length")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="files read at the same time (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="limit per clip (default: %(default)s)")
    parser.add_argument("--whole", action="store_true", help="decode every frame instead of the first and the last")
    parser.add_argument("--captions", action="store_true", help="look for captions longer than the text encoder reads; needs --base")
    parser.add_argument("--quiet", action="store_true", help="leave out notes and summary")
    arguments = parser.parse_args()
    for name, wrong in (("workers", arguments.workers < 1), ("timeout", arguments.timeout <= 0)):
        if wrong:
            raise UserError(f"command line: --{name}: found {getattr(arguments, name)}, expected more than 0")
    if not arguments.base and (arguments.captions or not arguments.lists):
        raise UserError("command line: found neither a list nor --base; try `python sat/check_dataset.py list.json`" if not arguments.lists
                        else "command line: --captions: needs --base, which says where the text encoder is")  # fmt: skip
    return arguments


def main() -> int:
    """Check the lists; 1 if there are problems."""
    prepare_process()
    arguments = read_arguments()

    from concat_id.config.args import DataConfig
    from concat_id.config.loading import load_config
    from concat_id.data.checking import check_lists, summary
    from concat_id.data.clips import Window

    lists, data, max_refs, unseen = arguments.lists, DataConfig((480, 720), 8, 49), 3, {}
    if arguments.base:
        config = load_config(arguments.base)
        lists = lists or [*config.training.train_data, *config.training.valid_data]
        data, max_refs = config.data, config.model.transformer.max_refs
    if not lists:
        raise UserError("train_data: no list given, neither on the command line nor in --base; try `python sat/check_dataset.py list.json`")
    if arguments.captions:
        from concat_id.models.backbones import make_text_encoder

        encoder = make_text_encoder(config, "cpu", None)
        unseen = {"too long for": encoder.truncated_part, "in part unknown to": encoder.unknown_part}
    window = Window(data.fps, data.max_num_frames, data.skip_frms_num, tuple(data.video_size))
    report = check_lists(lists, window, max_refs, arguments.workers, arguments.timeout, arguments.whole, unseen)
    for problem in report.problems:
        print(f"problem: {one_line(problem)}")
    for line in [] if arguments.quiet else [*(f"note: {one_line(note)}" for note in report.notes), *summary(report)]:
        print(line)
    print(f"{len(report.problems)} problems, {len(report.notes)} notes")
    return 1 if report.problems else 0


if __name__ == "__main__":
    run(main)
