# What every relay needs, likewise.
Address ${ip}
${orports}
SocksPort 0
