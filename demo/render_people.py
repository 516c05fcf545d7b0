"""Render talking heads of synthetic people: `python demo/render_people.py --output data/people --people 500 --shots 2 --workers 2`.

Writes clips/*.mp4 and clips.json, the list of them with captions, identities, exact attributes and the split by person; with --stills
further images of each person and stills.json; with --images one late frame of each shot in place of its clip, and with --portraits
calm images of its people in the same light. A run that was stopped is continued by the same command, and more people may be asked for
later. With --sheet it draws one image of them instead.
"""

import sys
from pathlib import Path

sys.path.extend([str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "sat")])

from concat_id.config.parser import Namespace, Parser
from concat_id.errors import UserError
from concat_id.startup import prepare_process, run
from minimum import check_minimum


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", type=Path, metavar="FOLDER", help="folder to write")
    target.add_argument("--sheet", type=Path, metavar="FILE", help="draw a contact sheet: a person a row, or with --together two")
    parser.add_argument("--together", action="store_true", help="with --sheet: two people in each shot")
    parser.add_argument("--people", type=int, default=500, metavar="N", help="number of people (default: %(default)s)")
    parser.add_argument("--shots", type=int, default=2, metavar="N", help="clips of each person alone (default: %(default)s)")
    parser.add_argument("--pairs", type=float, default=0.4, metavar="X", help="clips of two people, for each person (default: %(default)s)")
    parser.add_argument("--stills", type=int, default=0, metavar="N", help="calm images of each person, for references (default: none)")
    parser.add_argument("--images", action="store_true", help="write a late frame of each shot in place of its clip")
    parser.add_argument("--portraits", action="store_true", help="with --images: calm images of its people in the light of each shot")
    parser.add_argument("--near", action="store_true", help="a nearer camera and calmer heads, for --size 128 96 and one person a clip")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed makes another world (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=49, metavar="N", help="frames of a clip (default: %(default)s)")
    parser.add_argument("--fps", type=float, default=8, metavar="N", help="frames a second (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 144), metavar=("H", "W"), help="height and width (default: 96 144)")
    parser.add_argument("--samples", type=int, default=2, metavar="N", help="N x N looks make one pixel (default: %(default)s)")
    arguments = parser.parse_args()
    check_minimum(arguments, people=1, pairs=0, workers=1, frames=1, fps=1, samples=1)
    if any(side < 32 or side % 2 for side in arguments.size):
        raise UserError(f"command line: --size: found {arguments.size[0]} {arguments.size[1]}, expected even numbers from 32")
    if arguments.sheet and not arguments.shots:
        raise UserError("command line: --shots: found 0, expected at least 1 with --sheet")
    if arguments.portraits and not arguments.images:
        raise UserError("command line: --portraits: found no --images, expected both")
    return arguments


def main() -> int:
    """Render what is missing, then list everything."""
    prepare_process()
    arguments = read_arguments()

    from tqdm import tqdm

    from concat_id.files.paths import check_writable
    from concat_id.video.writing import write_image
    from world.kernel_cache import keep_kernels

    keep_kernels()
    from world.dataset import WorldSettings, check_settings, jobs_of, write_list, write_world
    from world.sheet import draw_sheet
    from world.shots import NEAR, WIDE

    if arguments.sheet:
        sheet = draw_sheet(arguments.people, arguments.shots, arguments.seed, tuple(arguments.size), arguments.together,
                           NEAR if arguments.near else WIDE)  # fmt: skip
        write_image(arguments.sheet, sheet)
        return 0
    check_writable(arguments.output)
    settings = WorldSettings(seed=arguments.seed, shots=arguments.shots, stills=arguments.stills, pairs=arguments.pairs,
                             frames=arguments.frames, fps=arguments.fps, size=tuple(arguments.size), samples=arguments.samples,
                             images=arguments.images, portraits=arguments.portraits, near=arguments.near)  # fmt: skip
    check_settings(arguments.output, settings)
    total = sum(len(list(jobs_of(settings, index))) for index in range(arguments.people))
    with tqdm(total=total, unit="shot", desc="rendering") as progress:
        for done in write_world(arguments.output, settings, arguments.people, arguments.workers):
            progress.update(done)
    clips, stills = write_list(arguments.output, settings, arguments.people)
    what = "images" if arguments.images else "clips"
    print(f"{arguments.output}: {clips} {what} and {stills} stills of {arguments.people} people")
    return 0


if __name__ == "__main__":
    run(main)
