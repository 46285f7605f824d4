# ruff: noqa: E501  (a form a line reads better than one wrapped)
"""Made-up values in the documented forms of what must never be published: built when a test runs, from parts.

No value stands in this file, so no scanner of others finds one in the repository. A line is: what it is, where its
form is documented, and the form: {A20} digits and letters, {H40} hex, {U}, {B} base64 for addresses and plain,
{D} digits, {X} capitals and digits, {L} lower case and digits, {C} capitals and letters; ~ stands for nothing, and
keeps what is fixed in two pieces.
"""

from __future__ import annotations

import random
import re
import string

ALPHABETS = {
    "A": string.ascii_letters + string.digits,
    "H": "0123456789abcdef",
    "U": string.ascii_letters + string.digits + "-_",
    "B": string.ascii_letters + string.digits + "+/",
    "D": "123456789",
    "X": string.ascii_uppercase + string.digits,
    "L": string.ascii_lowercase + string.digits,
    "C": string.ascii_letters,
}

FORMS = r"""
Vast.ai API key | docs.vast.ai/api | {H64}
RunPod API key | docs.runpod.io/get-started/api-keys | rp~a_{X24}{L16}
RunPod S3 key | docs.runpod.io/storage/s3-api | rp~s_{A44}
Lambda Cloud key | docs.lambda.ai/public-cloud/cloud-api | secret_glass_{H32}.{A32}
Modal token id | modal.com/docs/reference/cli/token | a~k-{A22}
Modal token secret | modal.com/docs/reference/cli/token | a~s-{A22}
DigitalOcean personal token | docs.digitalocean.com/reference/api/create-personal-access-token | do~p_v1_{H64}
DigitalOcean OAuth token | docs.digitalocean.com/reference/api/oauth | do~o_v1_{H64}
DigitalOcean refresh token | docs.digitalocean.com/reference/api/oauth | do~r_v1_{H64}
AWS access key id | docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers | AK~IA{X16}
AWS temporary key id | docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers | AS~IA{X16}
AWS secret access key | docs.aws.amazon.com/IAM/latest/UserGuide/access-keys-admin-managed | {B40}
AWS session token | docs.aws.amazon.com/STS/latest/APIReference/API_Credentials | IQo~Jb3JpZ2luX2Vj{B120}
AWS Bedrock key | docs.aws.amazon.com/bedrock/latest/userguide/api-keys | AB~SK{B120}
AWS presigned address | docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth | x?X-Amz-Expires=60&X-Amz-Sig~nature={H64}
Azure storage key | learn.microsoft.com/azure/storage/common/storage-account-keys-manage | Account~Key={B86}==
Azure storage key, bare | learn.microsoft.com/azure/storage/common/storage-account-keys-manage | {B86}==
Azure shared access signature | learn.microsoft.com/azure/storage/common/storage-sas-overview | ?sv=2024-11-04&s~ig={B43}%3D
Azure service bus | learn.microsoft.com/azure/service-bus-messaging/service-bus-sas | SharedAccess~Key={B43}=
Entra client secret | learn.microsoft.com/entra/identity-platform/how-to-add-credentials | {A3}8~Q~~{A34}
Azure DevOps token | learn.microsoft.com/azure/devops/organizations/accounts/use-personal-access-tokens-to-authenticate | {A76}AZ~DO{A4}
Google API key | cloud.google.com/docs/authentication/api-keys | AI~za{U35}
Google OAuth access token | developers.google.com/identity/protocols/oauth2 | ya~29.{U120}
Google OAuth refresh token | developers.google.com/identity/protocols/oauth2 | 1/~/0{U60}
Google OAuth client secret | developers.google.com/identity/protocols/oauth2 | GOC~SPX-{U28}
Hugging Face token | huggingface.co/docs/hub/security-tokens | h~f_{C34}
Hugging Face organization token | huggingface.co/docs/hub/security-tokens | api~_org_{C34}
W&B API key | docs.wandb.ai/support/find_api_key | {H40}
W&B API key, new | docs.wandb.ai/guides/hosting/iam | wandb~_v1_{A70}
W&B local key | docs.wandb.ai/guides/hosting | lo~cal-{H40}
OpenAI key | platform.openai.com/docs/api-reference/authentication | s~k-{A48}
OpenAI project key | platform.openai.com/docs/api-reference/project-api-keys | s~k-proj-{U120}
Anthropic key | docs.anthropic.com/en/api/getting-started | s~k-ant-api03-{U93}AA
OpenRouter key | openrouter.ai/docs/api-reference/authentication | s~k-or-v1-{H64}
DeepSeek key | api-docs.deepseek.com | s~k-{H32}
Groq key | console.groq.com/docs/quickstart | gs~k_{A52}
xAI key | docs.x.ai/docs/tutorial | x~ai-{A80}
Perplexity key | docs.perplexity.ai/guides/getting-started | pp~lx-{A48}
Replicate token | replicate.com/docs/topics/security/api-tokens | r~8_{A37}
NVIDIA API key | docs.nvidia.com/ngc/gpu-cloud/ngc-user-guide | nv~api-{U64}
NVIDIA NGC key, old | docs.nvidia.com/ngc/gpu-cloud/ngc-user-guide | {A84}
Mistral key | docs.mistral.ai/getting-started/quickstart | {A32}
Cohere key | docs.cohere.com/docs/rate-limits | {A40}
Together key | docs.together.ai/docs/quickstart | tg~p_v1_{U43}
Fireworks key | docs.fireworks.ai/getting-started/quickstart | f~w_{A24}
Cerebras key | inference-docs.cerebras.ai/quickstart | cs~k-{L48}
ElevenLabs key | elevenlabs.io/docs/api-reference/authentication | s~k_{H48}
Pinecone key | docs.pinecone.io/guides/projects/manage-api-keys | pc~sk_{A6}_{A63}
LangSmith key | docs.smith.langchain.com/administration/how_to_guides | lsv~2_pt_{H32}_{H10}
Langfuse secret key | langfuse.com/docs/api | s~k-lf-{H8}-{H4}-{H4}-{H4}-{H12}
Jina key | jina.ai/reader | ji~na_{A56}
Tavily key | docs.tavily.com/documentation/quickstart | tv~ly-dev-{A32}
Voyage key | docs.voyageai.com/docs/api-key-and-installation | p~a-{U43}
Comet key | www.comet.com/docs/v2/guides/experiment-management/configure-sdk | {A25}
ClearML secret | clear.ml/docs/latest/docs/webapp/settings | {A50}
Kaggle token | www.kaggle.com/docs/api | KG~AT_{H32}
Databricks token | docs.databricks.com/dev-tools/auth/pat | da~pi{H32}
Databricks token, numbered | docs.databricks.com/dev-tools/auth/pat | da~pi{H32}-2
Databricks OAuth secret | docs.databricks.com/dev-tools/auth/oauth-m2m | do~se{H32}
Docker personal token | docs.docker.com/security/access-tokens | dc~kr_pat_{U27}
Docker organization token | docs.docker.com/enterprise/security/access-tokens | dc~kr_oat_{U32}
GitHub token | docs.github.com/authentication/keeping-your-account-and-data-secure/about-authentication-to-github | gh~p_{A36}
GitHub server token | docs.github.com/authentication/keeping-your-account-and-data-secure/about-authentication-to-github | gh~s_{A36}
GitHub fine-grained token | docs.github.com/authentication/keeping-your-account-and-data-secure/about-authentication-to-github | github~_pat_{A22}_{A59}
GitLab token | docs.gitlab.com/security/tokens | gl~pat-{U20}
GitLab runner token | docs.gitlab.com/security/tokens | gl~rt-{U20}
GitLab deploy token | docs.gitlab.com/security/tokens | gl~dt-{U20}
Bitbucket app password | support.atlassian.com/bitbucket-cloud/docs/app-passwords | AT~BB{A32}
Atlassian token | support.atlassian.com/atlassian-account/docs/manage-api-tokens-for-your-atlassian-account | ATA~TT3xFfGF0{U170}
npm token | npm's documentation, About access tokens | np~m_{A36}
PyPI token | PyPI's help, API tokens | pyp~i-AgEIcHlwaS5vcmc{U120}
RubyGems key | RubyGems' guides, API key scopes | rubyg~ems_{H48}
crates token | Cargo's book, publishing | ci~o{A32}
CircleCI token | circleci.com/docs/managing-api-tokens | CCI~PAT_{A22}_{H40}
Sourcegraph token | sourcegraph.com/docs/cli/how-tos | sg~p_{H40}
Slack bot token | api.slack.com/concepts/token-types | xox~b-{D12}-{D12}-{A24}
Slack user token | api.slack.com/concepts/token-types | xox~p-{D12}-{D12}-{D12}-{H32}
Slack app token | api.slack.com/concepts/token-types | xa~pp-1-A{X10}-{D13}-{H64}
Slack webhook | api.slack.com/messaging/webhooks | https://hooks.sl~ack.com/services/T{X10}/B{X10}/{A24}
Slack workflow webhook | slack.com/help/articles/360041352714 | https://hooks.sl~ack.com/workflows/T{X10}/A{X10}/{D18}/{A24}
Discord webhook | discord.com/developers/docs/resources/webhook | https://discord.c~om/api/webhooks/{D18}/{U68}
Discord webhook, old host | discord.com/developers/docs/resources/webhook | https://discordapp.c~om/api/webhooks/{D18}/{U68}
Discord bot token | discord.com/developers/docs/reference | MT{A22}.{U6}.{U38}
Teams webhook | learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors | https://x.webhook.off~ice.com/webhookb2/{H8}-{H4}-{H4}-{H4}-{H12}@{H8}-{H4}-{H4}-{H4}-{H12}/IncomingWebhook/{H32}
Telegram bot token | core.telegram.org/bots/api | {D10}:AA{U33}
Telegram address | core.telegram.org/bots/api | https://api.tele~gram.org/bot{D10}:AA{U33}/getMe
Twilio account id | www.twilio.com/docs/glossary/what-is-a-sid | A~C{H32}
Twilio key id | www.twilio.com/docs/iam/api-keys | S~K{H32}
Twilio auth token | www.twilio.com/docs/iam/api/authtoken | {H32}
SendGrid key | docs.sendgrid.com/ui/account-and-settings/api-keys | S~G.{U22}.{U43}
Mailgun key | documentation.mailgun.com/docs/mailgun/user-manual/api-key-mgmt | ke~y-{H32}
Mailchimp key | mailchimp.com/developer/marketing/guides/quick-start | {H32}-us~12
Brevo key | developers.brevo.com/docs/getting-started | xkey~sib-{H64}-{A16}
Resend key | resend.com/docs/api-reference/introduction | r~e_{A8}_{A24}
Stripe live key | docs.stripe.com/keys | s~k_live_{A24}
Stripe test key | docs.stripe.com/keys | s~k_test_{A99}
Stripe restricted key | docs.stripe.com/keys | r~k_live_{A24}
Stripe publishable key | docs.stripe.com/keys | p~k_live_{A24}
Stripe webhook secret | docs.stripe.com/webhooks | wh~sec_{A32}
Shopify token | shopify.dev/docs/api/usage/authentication | shp~at_{H32}
Square token | developer.squareup.com/docs/build-basics/access-tokens | EA~AA{U60}
Square secret | developer.squareup.com/docs/oauth-api/overview | sq0~csp-{U43}
Plaid access token | plaid.com/docs/api/tokens | access~-production-{H8}-{H4}-{H4}-{H4}-{H12}
Heroku key | devcenter.heroku.com/articles/platform-api-quickstart | HR~KU-{H8}-{H4}-{H4}-{H4}-{H12}
Heroku key, old | devcenter.heroku.com/articles/platform-api-quickstart | {H8}-{H4}-{H4}-{H4}-{H12}
Netlify token | docs.netlify.com/api/get-started | nf~p_{A36}
Vercel token | vercel.com/docs/rest-api | {A24}
Fly.io token | fly.io/docs/security/tokens | fm~2_{U120}
Supabase token | supabase.com/docs/guides/api/api-keys | sb~p_{H40}
PlanetScale password | planetscale.com/docs/concepts/password-roles | psc~ale_pw_{U43}
Neon key | neon.tech/docs/manage/api-keys | na~pi_{L64}
Cloudflare key | developers.cloudflare.com/fundamentals/api/get-started/keys | {H37}
Cloudflare token | developers.cloudflare.com/fundamentals/api/get-started/create-token | {U40}
Cloudflare origin CA key | developers.cloudflare.com/fundamentals/api/get-started/ca-keys | v1.~0-{H24}-{H146}
Vault token | developer.hashicorp.com/vault/docs/concepts/tokens | hv~s.{U90}
Terraform token | developer.hashicorp.com/terraform/cloud-docs/users-teams-organizations/api-tokens | {A14}.atlas~v1.{U67}
Doppler token | docs.doppler.com/docs/service-tokens | dp.~st.prd.{A43}
Pulumi token | www.pulumi.com/docs/pulumi-cloud/access-management/access-tokens | pu~l-{H40}
1Password service account | developer.1password.com/docs/service-accounts/get-started | ops~_eyJ{B250}
Tailscale key | tailscale.com/kb/1085/auth-keys | ts~key-auth-{A16}-{A32}
ngrok token | ngrok.com/docs/agent/#authtokens | 2{A26}_{A20}
Grafana cloud token | grafana.com/docs/grafana-cloud/security-and-account-management | gl~c_{B120}
Grafana service account | grafana.com/docs/grafana/latest/administration/service-accounts | gl~sa_{A32}_{H8}
New Relic key | docs.newrelic.com/docs/apis/intro-apis/new-relic-api-keys | NR~AK-{X27}
Datadog key | docs.datadoghq.com/account_management/api-app-keys | {H32}
Datadog application key | docs.datadoghq.com/account_management/api-app-keys | {H40}
Sentry token | docs.sentry.io/account/auth-tokens | sn~tryu_{H64}
Sentry address | docs.sentry.io/concepts/key-terms/dsn-explainer | https://{H32}@o{D6}.ingest.sen~try.io/{D7}
Honeycomb key | docs.honeycomb.io/configure/environments/manage-api-keys | hc~aik_01{L58}
Linear key | linear.app/developers/graphql | lin~_api_{A40}
Notion token | developers.notion.com/docs/authorization | nt~n_{A46}
Airtable token | airtable.com/developers/web/api/authentication | pa~t{A14}.{H64}
Postman key | learning.postman.com/docs/developer/postman-api/authentication | PM~AK-{H24}-{H34}
Figma token | www.figma.com/developers/api | fi~gd_{U40}
Dropbox token | developers.dropbox.com/oauth-guide | s~l.{U130}
PEM private key | RFC 7468 | -----BEGIN PRIVATE ~KEY-----
RSA private key | RFC 8017, openssl-genrsa(1) | -----BEGIN RSA PRIVATE ~KEY-----
OpenSSH private key | openssh.com, PROTOCOL.key | -----BEGIN OPENSSH PRIVATE ~KEY-----
PGP private key | RFC 9580 | -----BEGIN PGP PRIVATE ~KEY BLOCK-----
PuTTY key | the.earth.li/~sgtatham/putty, Appendix C | PuTTY-User-~Key-File-3: ssh-ed25519
SSH2 key | RFC 4716 | ---- BEGIN SSH2 ENCRYPTED PRIVATE ~KEY ----
age key | age-encryption.org/v1 | AGE-SECRET-~KEY-1{X58}
WireGuard key | wireguard.com, wg(8) | {B43}=
minisign key | jedisct1.github.io/minisign | minisign encrypted secret ~key
owner key of ours | sealing/owner.py | glasshouse-xwing-~seed-v1 {U43}
JSON web token | RFC 7519 | ey~JhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx{U10}.{U43}
basic authorization | RFC 7617 | Authorization: Ba~sic {B24}
bearer authorization | RFC 6750 | Authorization: Be~arer {U32}
cookie | RFC 6265 | Set-Coo~kie: session={A24}
address with a password | RFC 3986 | postgresql://op:{A12}@db/x
address with a password alone | redis.io/docs/latest/develop/connect | redis://:{A16}@cache/0
password in words | - | pass~word: {A8}
key in words | - | api~_key={A10}
IPv4 address | RFC 791 | 203.0.113.{D2}
IPv6 address | RFC 4291 | 2001:db8:{H4}:{H4}:{H4}:{H4}:{H4}:{H4}
IPv6 address, short | RFC 5952 | 2001:db8::{D2}
IPv6 address, local | RFC 4291 | fe80::{D2}:{H3}%eth0
IPv6 address with port | RFC 3986 | [2001:db8::{D2}]:22
hardware address | IEEE 802 | 52:54:00:{H2}:{H2}:{H2}
e-mail address | RFC 5322 | ada.{C5}@example.org
shell account | ssh(1) | ada@gpu-box
host name | RFC 1123 | node{D2}.hpc.example.edu
host name, inner | RFC 6762 | gpu-{D2}.local
host name in a cloud | docs.aws.amazon.com/AWSEC2/latest/UserGuide/hostname-types | ip-10-0-1-{D2}.eu-west-1.compute.internal
host name in a cluster | kubernetes.io/docs/concepts/services-networking/dns-pod-service | trainer-{D1}.jobs.svc.cluster.local
host and port | RFC 3986 | gpu-box.lab:{D4}
path in a home | FHS | /home/ada/run-{D2}/train.py
path of root | FHS | /root/.config/x
data path | - | /data/patients-{D2}
data path alone | - | /data
scratch path | - | /scratch/ada/x{D2}
NFS path | - | /nfs/team-{D2}/weights
Lustre path | - | /lustre/fsw/proj
mount | FHS | /mnt/disk{D1}
path of nobody's list | - | /hpcwork/ab12/x{D2}
macOS path | - | /Users/ada/x
volume | - | /Volumes/Work/x
Windows path | - | C:\Users\ada
Windows share | - | \\fs01\team
home | bash(1) | ~/proj/x
SSH folder | ssh(1) | key=.ssh/id_{L4}
kube folder | kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig | .kube/config
file address | RFC 8089 | file:///x/{L4}
ngrok tunnel | ngrok.com/docs | https://{H12}.ngrok-free.app
Cloudflare tunnel | developers.cloudflare.com/cloudflare-one/connections/connect-networks | brave-fox.trycloudflare.com
Cloudflare named tunnel | developers.cloudflare.com/cloudflare-one/connections/connect-networks | {H8}.cfargotunnel.com
RunPod proxy | docs.runpod.io/pods/configuration/expose-ports | {L14}-8888.proxy.runpod.net
RunPod SSH | docs.runpod.io/pods/configuration/use-ssh | {L14}-{H8}@ssh.runpod.io
Vast.ai host | docs.vast.ai/instances/ssh | ssh{D1}.vast.ai
localtunnel | theboroer.github.io/localtunnel-www | brave-fox-{D2}.loca.lt
serveo | serveo.net | brave.serveo.net
Tailscale funnel | tailscale.com/kb/1223/funnel | box.tail{H5}.ts.net
dev tunnel | learn.microsoft.com/azure/developer/dev-tunnels | {L8}-8080.euw.devtunnels.ms
codespace | docs.github.com/codespaces | brave-fox-{L10}-8080.app.github.dev
gradio | www.gradio.app/guides/sharing-your-app | {H16}.gradio.live
pinggy | pinggy.io/docs | r{L6}.a.pinggy.link
localhost.run | localhost.run/docs | {H14}.lhr.life
bore | github.com/ekzhang/bore | bore.pub:{D5}
zrok | docs.zrok.io | {L12}.share.zrok.io
onion | spec.torproject.org/rend-spec | {L56}.onion
SSH public key | RFC 4253 | ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{B43}
ECDSA public key | RFC 5656 | ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAI{B86}
"""


def canaries(seed: int = 20261128) -> list[tuple[str, str, str]]:
    """(what it is, its source, the value) of every form; equal seeds give equal values."""
    made = random.Random(seed)
    found = []
    for line in FORMS.strip().splitlines():
        name, source, form = line.split(" | ")
        text = re.sub(
            r"\{([A-Z])(\d+)\}",
            lambda match: "".join(made.choices(ALPHABETS[match[1]], k=int(match[2]))),
            form,
        )
        kept = text.replace("~~", "\0").replace("~/", "\1").replace("~", "")
        found.append((name, source, kept.replace("\0", "~").replace("\1", "~/" if name == "home" else "/")))
    return found
