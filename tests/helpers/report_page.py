"""What the page of an HTML report has embedded in it."""

import json
import re
from typing import Any


def embedded(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
