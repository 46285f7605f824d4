"""The forms of vendors' keys, tokens and webhooks: a dated list, in the order of who issues them.

Written from what each vendor's own documentation says of its format, as of LISTED; no entry is taken from
another scanner's list, and the list is under this program's licence. Each expression begins with what is
fixed in the format, and every repetition has a bound, so that a search takes time by a text's length alone.
What has no fixed beginning (32 or 40 digits and letters) is found by how random it looks: random_looking.py.
"""

from __future__ import annotations

import re
from typing import Final

LISTED: Final = "2026-11-28"

_A = "[A-Za-z0-9]"  # digits and letters
_U = r"[A-Za-z0-9_\-]"  # of base64url
_B = "[A-Za-z0-9+/]"  # of base64
_H = "[0-9a-f]"

# Behind a word's beginning: no letter, digit or underscore stands before them.
_WORDS: Final = (
    # models and their hosts
    rf"sk-{_U}{{16,256}}",  # OpenAI, Anthropic, OpenRouter, DeepSeek, Langfuse, LiteLLM
    rf"sk_{_H}{{48}}",  # ElevenLabs
    rf"gsk_{_A}{{20,128}}",  # Groq
    rf"hf_{_A}{{16,128}}|api_org_{_A}{{34}}",  # Hugging Face
    rf"xai-{_A}{{40,128}}",
    rf"pplx-{_A}{{32,128}}",
    rf"r8_{_A}{{37}}",  # Replicate
    rf"nvapi-{_U}{{32,128}}",
    rf"tgp_v\d_{_U}{{30,128}}",  # Together
    rf"fw_{_A}{{20,64}}",  # Fireworks
    rf"csk-{_A}{{32,128}}",  # Cerebras
    rf"jina_{_A}{{32,128}}|tvly-{_U}{{20,64}}|pcsk_{_A}{{5,16}}_{_A}{{40,128}}|pa-{_U}{{40,64}}",
    rf"lsv2_(?:pt|sk)_{_H}{{32}}(?:_{_H}{{10}})?|[ps]k-lf-{_H}{{8}}-",
    rf"wandb_v\d_{_U}{{20,256}}|local-{_H}{{40}}",  # Weights & Biases
    rf"KGAT_{_H}{{32}}",  # Kaggle
    # where machines are rented
    rf"rp[as]_{_A}{{16,128}}",  # RunPod
    rf"(?:ak|as|wk|ws)-{_A}{{22}}",  # Modal
    rf"secret_[a-z0-9\-]{{1,64}}_{_H}{{32}}\.{_A}{{32}}",  # Lambda
    rf"do[opr]_v1_{_H}{{64}}",  # DigitalOcean
    r"A(?:K|S|B|C)(?:IA|CA)[0-9A-Z]{16}|A(?:RO|ID)A[0-9A-Z]{16}|ABSK[A-Za-z0-9+/]{40,256}",  # AWS
    r"(?:FwoG|IQoJ)[A-Za-z0-9+/]{60,2048}",  # AWS, a session's
    rf"AIza{_U}{{30,64}}|GOCSPX-{_U}{{20,64}}|ya29\.{_U}{{20,512}}|1//0{_U}{{30,256}}",  # Google
    r"[\w~.\-]{3}8Q~[\w~.\-]{31,36}",  # Microsoft Entra
    rf"{_A}{{76}}AZDO{_A}{{4}}",  # Azure DevOps
    rf"HRKU-{_U}{{36,80}}|nfp_{_A}{{30,64}}|vc[pkiar]_{_A}{{24,80}}|rnd_{_A}{{28,64}}",
    rf"f(?:m[12][ar]?|o1)_{_U}{{20,512}}",  # Fly.io
    rf"sbp_{_H}{{40}}|sb_secret_{_U}{{20,64}}|pscale_(?:tkn|oauth|pw)_{_U}{{30,64}}|napi_{_A}{{40,80}}",
    rf"v1\.0-{_H}{{24}}-{_H}{{146}}",  # Cloudflare
    # data
    rf"dapi{_H}{{32}}(?:-\d)?|dose{_H}{{32}}|dkea{_H}{{32}}",  # Databricks
    rf"ntn_{_A}{{40,64}}|secret_{_A}{{43}}|lin_api_{_A}{{40}}|pat{_A}{{14}}\.{_H}{{64}}|PMAK-{_H}{{24}}-{_H}{{34}}",
    rf"sl\.{_U}{{60,512}}|fig[dour]_{_U}{{30,64}}",
    # code, packages, images
    rf"gh[pousr]_{_A}{{20,255}}|github_pat_[A-Za-z0-9_]{{20,255}}",
    rf"gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat|ffct|oas)-{_U}{{16,128}}",
    rf"ATBB{_A}{{24,64}}|AT(?:A|C)TT3{_U}{{40,256}}",  # Atlassian
    rf"npm_{_A}{{30,64}}|pypi-{_U}{{30,512}}|rubygems_{_H}{{48}}|cio{_A}{{32}}|oy2[a-z0-9]{{43}}|CLOJARS_[a-z0-9]{{60}}",
    rf"dckr_(?:pat|oat)_{_U}{{20,64}}",  # Docker
    rf"sgp_{_U}{{20,80}}|bkua_{_H}{{40}}|CCIPAT_{_U}{{20,80}}",
    # secrets' own keepers
    rf"hv[sbr]\.{_U}{{20,512}}|dp\.(?:pt|st|ct|sa|scim|audit)\.[A-Za-z0-9._\-]{{30,80}}|pul-{_H}{{40}}",
    rf"{_A}{{14}}\.atlasv1\.{_U}{{40,128}}|ops_eyJ{_B}{{40,1024}}|A3-[A-Z0-9]{{6}}-[A-Z0-9\-]{{20,40}}",
    rf"tskey-(?:auth|api|client|scim|webhook)-{_A}{{6,32}}(?:-{_A}{{10,64}})?",  # Tailscale
    # messages
    r"xox[abeoprs]-[A-Za-z0-9\-]{10,256}|xapp-\d-[A-Z0-9]{6,20}-[\w\-]{10,128}",  # Slack
    r"\d{8,10}:[A-Za-z0-9_\-]{35}(?![\w\-])",  # Telegram
    rf"[MNO][A-Za-z0-9_\-]{{23,27}}\.{_U}{{6}}\.{_U}{{27,40}}",  # Discord
    rf"(?:AC|SK){_H}{{32}}",  # Twilio
    rf"SG\.{_U}{{16,32}}\.{_U}{{16,64}}|key-{_H}{{32}}|{_H}{{32}}-us\d{{1,2}}|xkeysib-{_H}{{64}}-{_A}{{16}}",
    rf"re_{_A}{{6,12}}_{_A}{{16,40}}",  # SendGrid, Mailgun, Mailchimp, Brevo, Resend
    # watching
    rf"gl(?:c|sa)_{_U}{{20,256}}|NR(?:AK|II|JS|RA)-{_A}{{19,40}}|sntr(?:ys_eyJ{_U}{{20,512}}|yu_{_H}{{64}})",
    r"hc[abxi]{1,2}k_[a-z0-9]{20,80}",
    # money
    rf"(?:sk|rk|pk)_(?:live|test)_{_A}{{10,256}}|whsec_[A-Za-z0-9+/=]{{20,80}}",  # Stripe
    rf"shp(?:at|ca|pa|ss)_{_H}{{32}}|sq0(?:atp|csp|idp)-{_U}{{20,48}}|EAA{_A}{{60,512}}",
    r"access-(?:production|sandbox|development)-[0-9a-f]{8}-[0-9a-f\-]{27}",  # Plaid
)  # fmt: skip

TOKEN: Final = re.compile(rf"(?<![A-Za-z0-9_])(?:{'|'.join(_WORDS)})")

# An address that is a secret by itself: whoever knows it may write there.
WEBHOOK: Final = re.compile(
    r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_\-]{8,200}"
    r"|discord(?:app)?\.com/api/(?:v\d{1,2}/)?webhooks/\d{5,25}/[A-Za-z0-9_\-]{20,100}"
    r"|webhook\.office\.com/webhookb2/[A-Za-z0-9@/\-]{8,300}|\.logic\.azure\.com[:/][\w/\-]{8,200}"
    r"|hooks\.zapier\.com/hooks/catch/\d{1,12}/[A-Za-z0-9]{4,20}|maker\.ifttt\.com/trigger/[\w/\-]{4,200}"
    r"|chat\.googleapis\.com/v1/spaces/[\w\-]{4,40}/messages\?key=|api\.telegram\.org/bot\d{5,12}:",
    re.IGNORECASE,
)
# A value that is signed for, in an address or a connection string.
SIGNED_ADDRESS: Final = re.compile(
    r"(?:AccountKey|SharedAccessKey|SharedSecretValue)=[A-Za-z0-9+/]{20,128}={0,2}"
    r"|[?&](?:sig|X-Amz-Signature|X-Goog-Signature|Signature)=[A-Za-z0-9%+/=_\-]{20,600}"
)
TUNNEL: Final = re.compile(
    r"(?<=[\w\-])\.(?:ngrok(?:-free)?\.(?:io|app|dev|com)|trycloudflare\.com|cfargotunnel\.com|loca\.lt|localtunnel\.me"
    r"|serveo\.net|serveousercontent\.com|(?:beta\.)?tailscale\.net|ts\.net|runpod\.(?:net|io)|vast\.ai"
    r"|localhost\.run|lhr\.(?:life|rocks|pro)|pinggy\.(?:link|io|online)|devtunnels\.ms|bore\.(?:pub|digital)|zrok\.io"
    r"|tunnelmole\.(?:com|net)|tunnelto\.dev|telebit\.(?:io|xyz)|pagekite\.me|playit\.gg|joinmc\.link|tuns\.sh"
    r"|gradio\.live|app\.github\.dev|githubpreview\.dev|gitpod\.io|ultrahook\.com|inlets\.dev|expose\.dev|sharedwithexpose\.com"
    r"|holesail\.io|packetriot\.net|burrow\.io|webhookrelay\.com|onion)(?![\w\-])|(?<![\w.\-])bore\.pub(?::\d{1,5})?(?![\w\-])",
    re.IGNORECASE,
)  # fmt: skip
