"""Check training lists before training: `python sat/check_dataset.py list.json [--model cogvideox_5b | --base FILE ...]`.

Reads every clip and image as training of the model would, names what is wrong with which entry, and sums up what there is.
The exit code is 1 if anything must be mended, 0 if there are at most notes.
"""

from concat_id.startup import prepare_process, run  # isort: split

import os

from concat_id.config.parser import Namespace, Parser
from concat_id.errors import UserError, counted, one_line


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("lists", nargs="*", metavar="LIST", help="JSON lists, or folders of clips (default: train_data and valid_data)")
    parser.add_argument("--model", metavar="NAME", help="model whose clips' size, rate and length count (default: as sat/train_video.py)")
    parser.add_argument("--base", nargs="+", default=[], metavar="FILE", help="YAML files of the run in place of --model")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="files read at the same time (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="limit per clip (default: %(default)s)")
    parser.add_argument("--whole", action="store_true", help="decode every frame instead of the first and the last")
    parser.add_argument("--captions", action="store_true", help="look for captions longer than the text encoder reads")
    parser.add_argument("--quiet", action="store_true", help="leave out notes and summary")
    arguments = parser.parse_args()
    for name, wrong in (("workers", arguments.workers < 1), ("timeout", arguments.timeout <= 0)):
        if wrong:
            raise UserError(f"command line: --{name}: found {getattr(arguments, name)}, expected more than 0")
    return arguments


def main() -> int:
    """Check the lists; 1 if there are problems."""
    prepare_process()
    arguments = read_arguments()

    from concat_id.config.loading import load_config
    from concat_id.config.presets import choose
    from concat_id.config.schema import BACKBONES
    from concat_id.data.checking import check_lists, summary
    from concat_id.data.clips import Window

    files = choose(arguments.model, base=arguments.base, training=True, to_run=False)
    config, unseen = load_config(files, kinds=BACKBONES), {}
    data, lists = config.data, arguments.lists or [*config.training.train_data, *config.training.valid_data]
    if not lists:
        raise UserError(f"train_data: found no list in {files[-1]}, expected one there or on the command line; name your list")
    if arguments.captions:
        from concat_id.models.backbones import make_text_encoder

        encoder = make_text_encoder(config, "cpu", None)
        unseen = {"too long for": encoder.truncated_part, "in part unknown to": encoder.unknown_part}
    window = Window(data.fps, data.max_num_frames, data.skip_frms_num, tuple(data.video_size))
    if not arguments.quiet:
        (height, width), names = data.video_size, " ".join(os.path.relpath(file) for file in files)
        print(f"judged as clips of {width}x{height}, {data.max_num_frames} frames at {data.fps} a second: {names} (--model chooses others)")
    report = check_lists(lists, window, config.model.transformer.max_refs, arguments.workers, arguments.timeout, arguments.whole, unseen)
    for problem in report.problems:
        print(f"problem: {one_line(problem)}")
    for line in [] if arguments.quiet else [*(f"note: {one_line(note)}" for note in report.notes), *summary(report)]:
        print(line)
    print(counted(problem=len(report.problems), note=len(report.notes)))
    return 1 if report.problems else 0


if __name__ == "__main__":
    run(main)
