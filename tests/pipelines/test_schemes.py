"""Schemes of paths: those of storage in either case, and what is said of all others."""

import pytest

from beit.errors import UserError
from beit.plain import override
from pipelines import schemes
from pipelines.config.tokenizer import EncodeConfig
from pipelines.presets import finetune, pretrain
from pipelines.runs.models import find_model, find_tokenizer
from pipelines.runs.run_folder import saved_run

KNOWN = "give a local path, or one that begins with s3://, gs://, gcs://, abfs://, abfss://, hf://"


def refusal(refuse, *arguments, **options):
    with pytest.raises(UserError) as refused:
        refuse(*arguments, **options)
    return refused.value.cause, refused.value.remedy


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("/a", ""),
        ("a", ""),
        ("file:///a", ""),
        ("FILE:///a", ""),
        ("/odd/a://b", ""),
        ("s3://b", "s3"),
        ("S3://B/x", "s3"),
        ("GS://b", "gs"),
    ],
)
def test_schemes_of_storage_are_known_in_either_case(uri, scheme):
    schemes.check_scheme(uri)
    assert schemes.scheme_of(uri) == scheme


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("ftp://host/data", KNOWN),
        ("nowhere://3", KNOWN),
        ("s4://bucket/x?region=a", f"perhaps you meant s3://bucket/x?region=a; {KNOWN}"),
        ("S3A://bucket/x", f"perhaps you meant s3://bucket/x; {KNOWN}"),
        ("gss://bucket", f"perhaps you meant gs://bucket; {KNOWN}"),
    ],
)
def test_an_unknown_scheme_is_refused_with_the_nearest_one_or_all_of_them(uri, remedy):
    unknown = "begins with an unknown scheme"
    assert refusal(schemes.check_scheme, uri) == (f"{uri} {unknown}", remedy)
    assert refusal(schemes.check_scheme, uri, option="start") == (f"start={uri} {unknown}", remedy)


@pytest.mark.parametrize(
    ("config", "option", "named"),
    [
        (pretrain.quickstart(), "output.root", "output.root='s4://bucket/x'"),
        (pretrain.quickstart(), "data.tokens", "data.tokens='s4://bucket/x'"),
        (pretrain.quickstart(), "tokenizer.path", "tokenizer.path=s4://bucket/x"),
        (finetune.quickstart(), "start", "--start 's4://bucket/x'"),
        (EncodeConfig(), "out", "--out 's4://bucket/x'"),
    ],
)
def test_an_option_with_an_unknown_scheme_is_refused_before_anything_begins(config, option, named):
    cause, remedy = refusal(override, config, {option: "s4://bucket/x"})
    assert cause == f"{named} begins with an unknown scheme"
    assert remedy == f"perhaps you meant s3://bucket/x; {KNOWN}"
    assert override(config, {option: "S3://bucket/x"})


@pytest.mark.parametrize("find", [find_model, saved_run])
def test_a_run_with_an_unknown_scheme_is_named_as_it_was_typed(find):
    assert refusal(find, "nowhere://x/") == ("nowhere://x/ begins with an unknown scheme", KNOWN)


def test_a_tokenizer_with_an_unknown_scheme_is_named_with_its_option():
    assert refusal(find_tokenizer, "nowhere://x")[0] == (
        "tokenizer.path=nowhere://x begins with an unknown scheme"
    )
