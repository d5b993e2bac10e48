"""Debian's cloud-init, its own code, in one of two parts:

cloud_init.py phone-home URL          the module phone_home as it runs at the end of the first boot
cloud_init.py metadata URL            the Ec2 data source as it crawls a metadata service on AWS
"""

import json
import logging
import sys
from types import SimpleNamespace

from cloudinit import helpers

part, url = sys.argv[1:]
paths = helpers.Paths({"cloud_dir": "/nonexistent", "run_dir": "/nonexistent"})


def speak_up():
    """After the imports: cloud-init takes every handler away when it is loaded."""
    logging.basicConfig(stream=sys.stderr, level=logging.DEBUG, force=True)


if part == "phone-home":
    from cloudinit.config import cc_phone_home

    speak_up()

    cloud = SimpleNamespace(
        paths=paths,
        get_instance_id=lambda: "iid-r1n1",
        get_hostname=lambda fqdn=False: SimpleNamespace(hostname="r1n1.rack" if fqdn else "r1n1"),
    )
    config = {"phone_home": {"url": url, "post": "all", "tries": 1}}
    cc_phone_home.handle("phone_home", config, cloud, logging.getLogger(), [])
else:
    from cloudinit.sources import DataSourceEc2

    speak_up()
    config = {"datasource": {"Ec2": {"metadata_urls": [url], "max_wait": 5, "timeout": 5}}}
    source = DataSourceEc2.DataSourceEc2(config, None, paths)
    # What the firmware's strings say on AWS: elsewhere cloud-init asks for no session token.
    source._cloud_name = DataSourceEc2.CloudNames.AWS
    crawled = source.crawl_metadata()
    if "user-data" in crawled:
        crawled["user-data"] = crawled["user-data"].decode()
    print(json.dumps(crawled))
