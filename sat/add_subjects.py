"""Add clothes and backgrounds to a training list: `python sat/add_subjects.py lists/stage_1_train.json --output lists/subjects_train.json`.

Cuts what people wear out of the middle frame of each clip (Grounding DINO finds it, SAM 2 its pixels), and takes the people out of the
first frame (an inpainting pipeline fills their place with some other thing). The list that is written has these images behind the
faces, and `kind` says what each reference is: training mirrors clothes now and then, and nothing else. Images are kept in a folder
beside it, and a run that was stopped is continued by the same command. The exit code is 1 if a clip could not be read.
"""

from concat_id.startup import prepare_process, run  # isort: split

from pathlib import Path

from concat_id.config.parser import Namespace, Parser
from concat_id.curation.options import add_engine_options, check_subjects, run_stage
from concat_id.errors import UserError, one_line, report


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("lists", type=Path, nargs="+", metavar="LIST", help="training lists, or folders of clips")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="list to write; images go to a folder beside it")
    parser.add_argument("--kinds", nargs="+", choices=("clothes", "background"), default=("clothes", "background"),
                        help="what to add (default: both)")  # fmt: skip
    parser.add_argument("--detector", type=Path, required=True, metavar="FOLDER", help="such as models/grounding-dino-base")
    parser.add_argument("--segmenter", type=Path, required=True, metavar="FOLDER", help="such as models/sam2.1-hiera-large")
    parser.add_argument("--inpainter", type=Path, metavar="FOLDER", help="for backgrounds: models/stable-diffusion-xl-1.0-inpainting-0.1")
    parser.add_argument("--words", default="clothes", help="for the detector: what is worn (default: %(default)s)")
    parser.add_argument("--max_refs", type=int, default=3, metavar="N", help="references of a clip at most (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 720), metavar=("H", "W"), help="of training's videos (480 720)")
    parser.add_argument("--skip", type=int, default=3, metavar="N", help="frames skipped at both ends by training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="of what fills people's places (default: %(default)s)")
    add_engine_options(parser)
    return check_subjects(parser.parse_args())


def main() -> int:
    """Make the images, then write the list; 1 if a clip could not be read."""
    prepare_process()
    arguments = read_arguments()

    from concat_id.curation import subjects
    from concat_id.curation.preparing import gather
    from concat_id.data.records import read_records
    from concat_id.files.json_files import write_json_list
    from concat_id.files.paths import only_writer

    records, folder = read_records(arguments.lists), arguments.output.parent
    for record in records:
        subjects.entry_with(record, (), folder)  # what a list cannot hold is told before anything is made
    settings = subjects.SubjectSettings(tuple(arguments.size), arguments.skip, arguments.words, arguments.seed, arguments.timeout)
    inpainter = arguments.inpainter if "background" in arguments.kinds else None
    models = subjects.ModelFolders(arguments.detector, arguments.segmenter, inpainter, arguments.device)
    subjects.load_tools(models)
    images = arguments.output.with_suffix(".subjects")
    with only_writer(images):
        stage = subjects.SubjectStage(images, settings, models, arguments.gpus_per_actor or 0)
        asked = [subjects.images_wanted(record, arguments.kinds, arguments.max_refs) for record in records]
        found = {wanted: stage.recall(wanted) for wanted in dict.fromkeys(wanted for own in asked for wanted in own)}
        missing = [wanted for wanted, made in found.items() if made is None]
        made, problems = gather(missing, run_stage(arguments, stage, missing)) if missing else ({}, [])
        found |= {missing[number]: one for number, one in made.items()}
        if problems and not any(found.values()):
            raise UserError(f"{problems[0]}; nothing can be added, {arguments.output} is not written")
        entries, counts = subjects.extended(records, asked, found, folder)
        write_json_list(arguments.output, entries)
    print(one_line(f"{arguments.output}: {len(entries)} entries"))
    for told, number in sorted(counts.items()):
        print(one_line(f"{number} {told}"))
    return report(*problems)


if __name__ == "__main__":
    run(main)
