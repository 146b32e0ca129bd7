"""Speakers of decoded utterances, for the bootstrap over speakers."""

from collections.abc import Sequence
from pathlib import Path

from icefall_pathways.corpora.layout import SplitFiles, find_corpus
from icefall_pathways.corpora.mls_layout import split_handle
from icefall_pathways.data.manifests import read_cuts
from icefall_pathways.experiment.checkpoints import read_description
from icefall_pathways.files import read_json
from icefall_pathways.languages import get_language
from icefall_pathways.reporting.results import newest_summary, recorded_corpus

_NAMED_BY_SPEAKER = ("mls", "mini")  # corpora in the layout of MLS, where ids start with the speaker


def speakers_of(exp_dir: Path, method: str, split: str, code: str, cut_ids: Sequence[str]) -> list[str]:
    """Return the speaker of each decoded cut.

    Args:
      exp_dir: Experiment folder, whose options name the folder of the manifests.
      method: Folder of the results.
      split: Decoded split.
      code: Language of the cuts.
      cut_ids: Ids of the cuts.

    Raises:
      ValueError: The manifest is missing, or does not have the speakers of all cuts.
    """
    if recorded_corpus(read_json(newest_summary(str(exp_dir), exp_dir / method, split))) in _NAMED_BY_SPEAKER:
        return [split_handle(cut_id)[0] for cut_id in cut_ids]
    folder = Path(read_description(exp_dir)["config"]["data"]["manifest_dir"])
    path = SplitFiles(folder, find_corpus(folder, "cuts"), get_language(code), split).cuts
    if not path.is_file():
        raise ValueError(
            f"--resample speaker reads the speakers from {path}, in the --manifest-dir of {exp_dir}, which does not "
            "exist: run the command in the folder of the training, or use --resample utterance"
        )
    speakers = {cut.id: cut.supervisions[0].speaker for cut in read_cuts(path)}
    if missing := [cut_id for cut_id in cut_ids if not speakers.get(cut_id)]:
        raise ValueError(
            f"--resample speaker: {path} has no speaker of {len(missing)} of {len(cut_ids)} utterances, such as "
            f"{missing[0]}: add speakers to the corpus and prepare it again, or use --resample utterance"
        )
    return [str(speakers[cut_id]) for cut_id in cut_ids]
