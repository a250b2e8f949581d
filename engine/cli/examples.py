"""Examples for the help page of each command."""

from __future__ import annotations

from typing import Final

import click

EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "up": ("redeem up", "redeem up --port 9090 --workers 2 --data /srv/redeem", "redeem up --demo"),
    "serve": ("redeem serve --host 0.0.0.0 --port 8080",),
    "persist": ("redeem persist",),
    "deliver": ("redeem deliver",),
    "init": ("redeem init",),
    "rebuild": ("redeem rebuild", "REDEEM_SHARDS=4 redeem rebuild"),
    "recover": ("redeem recover", "redeem recover --json > recovered.json"),
    "backup": ("redeem backup backup.dump", "redeem backup - | ssh store 'cat > backup.dump'"),
    "restore": ("redeem restore backup.dump",),
    "servers url": (
        'psql "$(redeem servers url postgresql)"',
        "redis-cli -s \"$(redeem servers url redis | sed 's,^unix://,,')\"",
    ),
    "doctor": ("redeem doctor",),
    "config show": ("redeem config show", "redeem config show --all --json"),
    "audit": ("redeem audit", "redeem audit --anchor 0:81234:DIGEST"),
    "ledger months": ("redeem ledger months",),
    "ledger detach": ("redeem ledger detach 2026-03",),
    "conflicts": ("redeem conflicts --limit 10",),
    "keys create": (
        "redeem keys create --name shop --scopes redeem,read",
        "redeem keys create --name partner --scopes redeem --campaign cmp_2",
        "redeem keys create --name shop --scopes redeem,read --signing required",
    ),
    "keys update": (
        "redeem keys update key_7Q2M --signing optional",
        "redeem keys update key_7Q2M --name shop --campaign cmp_1 --campaign cmp_2",
    ),
    "keys list": ("redeem keys list",),
    "keys revoke": ("redeem keys revoke key_7Q2M", "redeem keys revoke key_7Q2M --yes"),
    "dashboard link": (
        "redeem dashboard link",
        "redeem dashboard link --url https://redeem.example --key key_7Q2M",
    ),
    "keys rotate-secret": (
        "redeem keys rotate-secret key_7Q2M",
        "redeem keys rotate-secret key_7Q2M --retire sgn_3F --yes",
    ),
    "blocks add": (
        'redeem blocks add network 203.0.113.0/24 --reason "made-up codes" --ttl-s 3600',
        'redeem blocks add user ann --reason "stolen codes, ticket 7"',
        'redeem blocks add network 198.51.100.7 --allow --reason "our call centre"',
    ),
    "blocks list": ("redeem blocks list --state active", "redeem blocks list --kind user --subject ann"),
    "blocks show": ("redeem blocks show blk_1",),
    "blocks remove": ("redeem blocks remove blk_1",),
    "campaigns create": (
        'redeem campaigns create --name "Black Friday" --amount 1000 --currency EUR --stock 5000 --active',
        'redeem campaigns create --name "Gift cards" --kind balance --amount 5000 --currency EUR',
    ),
    "campaigns list": ("redeem campaigns list", "redeem campaigns list --all --json"),
    "campaigns show": ("redeem campaigns show cmp_2",),
    "campaigns update": (
        "redeem campaigns update cmp_2 --stock 8000 --ends-at 2030-12-01T00:00:00+01:00",
        "redeem campaigns update cmp_2 --per-user-limit none",
        "redeem campaigns update cmp_2 --card card.json",
    ),
    "campaigns activate": ("redeem campaigns activate cmp_2",),
    "campaigns pause": ("redeem campaigns pause cmp_2",),
    "campaigns resume": ("redeem campaigns resume cmp_2",),
    "campaigns end": ("redeem campaigns end cmp_2", "redeem campaigns end cmp_2 --yes"),
    "top": ("redeem top cmp_2", "redeem top cmp_2 --interval 10 --json >> sale.ndjson"),
    "batches list": ("redeem batches list cmp_2",),
    "codes mint": (
        "redeem codes mint cmp_2 --count 5000 --out codes.csv",
        "redeem codes mint cmp_2 --count 10 --format digits-18 --prefix VIP",
    ),
    "codes export": ("redeem codes export 3 --out codes.csv",),
    "codes void": (
        "redeem codes void BK0Y-0N40-SQ06-7TQE --reason stolen",
        "redeem codes void --batch 3 --serials 100-199 --reason leaked",
    ),
    "codes unvoid": ('redeem codes unvoid --batch 3 --reason "wrong batch"',),
    "codes rotate-key": ("redeem codes rotate-key",),
    "codes check": ("redeem codes check BK0Y-0N40-SQ06-7TQE", "redeem codes check - < code.txt"),
    "codes adjust": ('redeem codes adjust BK0Y-0N40-SQ06-7TQE --amount -250 --reason "paid twice"',),
    "codes import": (
        "redeem codes import cmp_2 codes.csv --report problems.csv",
        "zcat codes.csv.gz | redeem codes import cmp_2 -",
    ),
    "codes problems": ("redeem codes problems imp_1 --out problems.csv",),
    "codes discard-import": ("redeem codes discard-import imp_1",),
    "guard alerts": (
        "redeem guard alerts --state open",
        "redeem guard alerts --acknowledge alr_1",
    ),
    "guard rules list": ("redeem guard rules list",),
    "guard rules set": (
        "redeem guard rules set score observe",
        "redeem guard rules set score default",
    ),
    "imports list": ("redeem imports list cmp_2",),
    "voids list": ("redeem voids list 3",),
    "redemptions list": (
        "redeem redemptions list --user ann",
        "redeem redemptions list --campaign cmp_2 --from 2026-11-27T00:00:00Z --limit 20 --json",
    ),
    "redemptions show": ("redeem redemptions show 0-1795824095267-0",),
    "redemptions rollback": (
        'redeem redemptions rollback 0-1795824095267-0 --reason "order cancelled"',
        'redeem redemptions rollback 0-1795824095267-0 --amount 500 --reason "one item returned"',
    ),
    "users show": ("redeem users show ann",),
    "users erase": ('redeem users erase ann --reason "ticket 7"',),
    "events tail": (
        "redeem events tail",
        "redeem events tail --type redeemed --campaign cmp_2 --no-follow",
    ),
    "webhooks create": ("redeem webhooks create --url https://shop.example/hook --type redeemed",),
    "webhooks list": ("redeem webhooks list",),
    "webhooks show": ("redeem webhooks show wh_1",),
    "webhooks rotate": ("redeem webhooks rotate wh_1 --grace-s 3600",),
    "webhooks enable": ("redeem webhooks enable wh_1",),
    "webhooks disable": ("redeem webhooks disable wh_1",),
    "webhooks ping": ("redeem webhooks ping wh_1",),
    "webhooks listen": ("WEBHOOK_SECRET=whsec_… redeem webhooks listen --port 8088",),
    "webhooks retry": ("redeem webhooks retry wh_1",),
    "webhooks replay": (
        "redeem webhooks replay wh_1 --after beginning",
        "redeem webhooks replay wh_1 --dead-letter 12",
    ),
    "webhooks delete": ("redeem webhooks delete wh_1", "redeem webhooks delete wh_1 --yes"),
    "webhooks attempts": ("redeem webhooks attempts wh_1 --limit 20",),
    "webhooks dead-letters": ("redeem webhooks dead-letters wh_1",),
    "audit-log": ("redeem audit-log --limit 20", "redeem audit-log --act export --subject batch:3"),
}


def add_examples(command: click.Command, name: str) -> None:
    """Put the examples at the end of the help page of a command and of its subcommands."""
    if isinstance(command, click.Group):
        for subcommand_name, subcommand in command.commands.items():
            add_examples(subcommand, f"{name} {subcommand_name}")
    if lines := EXAMPLES.get(name):
        command.epilog = "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))
