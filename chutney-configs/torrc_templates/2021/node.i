# What every tor needs and a Chutney of 2021 leaves to templates.
TestingTorNetwork 1
DataDirectory ${dir}
PidFile ${pidfile}
Nickname ${nick}
Log notice file ${dir}/notice.log
RunAsDaemon ${daemon}
${authorities}
