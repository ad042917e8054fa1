"""What is personal is found by the library that finds it."""

import pytest

from gpt_jax.data import curation
from tests.data.test_curation import of

pytestmark = pytest.mark.parity


def test_what_is_personal_is_replaced():
  records = of({'prompt': 'Write to jane.doe@example.com, call +44 20 7946 0958', 'user': 'jane.doe@example.com'})
  ((_, record),) = curation.without_personal(records)
  assert 'jane' not in record['prompt'] and '7946' not in record['prompt'] and record['user'] == 'jane.doe@example.com'
  assert '{{PHONE}}' in record['prompt']
