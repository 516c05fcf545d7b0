"""Make training lists: `python sat/make_pairs.py data/real/manifest.json --stage all --output lists/ --calibrate`.

Takes the manifest of sat/prepare_clips.py. Stage 1 pairs a clip with its own crops (a photograph with that of its face), stage 2
with any crop of the person from another clip whose similarity is in a band, stage 3 with the least similar in a higher band.
Nobody is in two of train, valid and test. Writes stage_<n>_<split>.json, summary.json, test_prompts_<n>.txt, test_people/, test_clips_<n>/.
"""

from concat_id.startup import prepare_process, run  # isort: split

from pathlib import Path

from concat_id.config.parser import Namespace, Parser
from concat_id.curation.options import add_threshold_options, check_pairing
from concat_id.errors import UserError, one_line, warn


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("manifest", type=Path, help="manifest.json of sat/prepare_clips.py, or its folder")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder of the lists")
    parser.add_argument("--stage", choices=("1", "2", "3", "all"), default="all", help="default: %(default)s")
    parser.add_argument("--people", type=int, metavar="N", help="only clips of so many people (default: any)")
    parser.add_argument("--no_masks", action="store_true", help="let training see references with their surroundings")
    parser.add_argument("--valid", type=float, default=0.04, metavar="X", help="share of people for validation (default: %(default)s)")
    parser.add_argument("--test", type=float, default=0.08, metavar="X", help="share of people for tests (default: %(default)s)")
    parser.add_argument("--trade_off_clips", type=int, default=2, metavar="N", help="clips of a person in stage 3 (default: %(default)s)")
    parser.add_argument("--test_captions", type=int, default=2, metavar="N", help="prompts of each test person (default: %(default)s)")
    parser.add_argument("--test_people", type=int, metavar="N", help="test people with prompts, and as many groups (default: all)")
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="of splits and random pairs (default: %(default)s)")
    add_threshold_options(parser)
    arguments = parser.parse_args()
    check_pairing(arguments)
    return arguments


def main() -> None:
    """Tell who is who, choose thresholds, pair, write."""
    prepare_process()
    arguments = read_arguments()

    from concat_id.files.paths import only_writer

    with only_writer(arguments.output):
        make_lists(arguments)


def make_lists(arguments: Namespace) -> None:
    """Do it in a folder that nobody else writes."""
    from concat_id.curation import pairs
    from concat_id.curation import training_lists as lists
    from concat_id.curation.test_set import write_test_set
    from concat_id.curation.thresholds import choose_thresholds
    from concat_id.data.manifest_files import read_manifest
    from concat_id.face.recognition import same_person
    from concat_id.files.json_files import write_json

    recognizer, threshold, clips = read_manifest(arguments.manifest)
    lists.require_videos(clips)
    same = same_person(recognizer, threshold, arguments.same_person)
    print(one_line(same))
    clips, dropped = lists.place_clips(clips, same.threshold, (arguments.valid, arguments.test), arguments.seed)
    clips = [clip for clip in clips if arguments.people in (None, len(clip.identities))]
    if arguments.people and not clips:
        raise UserError(f"{arguments.manifest}: --people: found no clip of {arguments.people}, expected at least one")
    given = {name: getattr(arguments, name) for name in ("cross", "cross_two", "trade_off", "hygiene")}
    quantiles = arguments.quantiles if arguments.calibrate else None
    thresholds, told = choose_thresholds(clips, recognizer, arguments.thresholds, quantiles, given, arguments.seed)
    if thresholds.recognizer != recognizer:
        warn(f"the thresholds are meant for {thresholds.recognizer}, the cosines are {recognizer}'s; --calibrate finds its own")
    clips, close = lists.without_trained_on(clips, thresholds.hygiene)
    if arguments.calibrate:
        write_json(arguments.output / "thresholds.json", told)
    makers = {
        "1": lambda: pairs.pretraining_pairs(clips),
        "2": lambda: pairs.cross_video_pairs(clips, thresholds, arguments.seed),
        "3": lambda: pairs.trade_off_pairs(clips, thresholds, arguments.trade_off_clips, arguments.seed),
    }
    stages = {number: make for number, make in makers.items() if arguments.stage in (number, "all")}
    prompts = write_test_set(arguments.output, clips, arguments.test_captions, arguments.test_people)
    summary = lists.describe(clips, dropped, close) | told | lists.write_lists(arguments.output, stages, not arguments.no_masks)
    summary["prompts"] = prompts
    write_json(arguments.output / "summary.json", summary)
    print("\n".join(lists.lines(summary)))


if __name__ == "__main__":
    run(main)
